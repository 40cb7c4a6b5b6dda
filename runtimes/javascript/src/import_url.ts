/** A module at an address that only the page knows, which no bundler is to look for. */
export const importUrl = (url: string) => import(/* @vite-ignore */ /* webpackIgnore: true */ url);
