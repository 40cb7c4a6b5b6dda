plugins {
    id("com.android.application") version "8.13.0"
    kotlin("android") version "2.3.10"
}

android {
    namespace = "gptoss.app"
    compileSdk = 36
    defaultConfig {
        applicationId = "gptoss.app"
        minSdk = 24
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
        ndk { abiFilters += "arm64-v8a" }
        // Where the package is: empty for one that comes as assets/package.
        buildConfigField("String", "PACKAGE_URL", "\"${findProperty("packageUrl") ?: ""}\"")
    }
    buildFeatures { buildConfig = true }
    androidResources { noCompress += listOf("ort", "onnx", "data") }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":core"))
    implementation("com.microsoft.onnxruntime:onnxruntime-android:${property("onnxruntime")}")
}
