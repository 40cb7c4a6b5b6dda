// The core: no Android class in it, so it compiles and runs on any JVM.
plugins {
    kotlin("jvm") version "2.3.10"
}

dependencies {
    // The classes alone: the app brings the AAR with its native libraries.
    compileOnly("com.microsoft.onnxruntime:onnxruntime:${property("onnxruntime")}")
}

kotlin {
    jvmToolchain(17)
}

// Every language's: what a package's manifest may say.
tasks.processResources {
    from("$rootDir/../../runtimes/manifest.schema.json") { into("gptoss") }
}
