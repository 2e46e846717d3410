// What the page shows now, as numbers, for tests and for the console: `__zerver`. Law: written here, read there; nothing
// on the page depends on it.

export const seen = { run: null, opened_ms: null, waterfall: null };

Object.defineProperty(window, "__zerver", { value: seen });
