/**
 * Timers as they are when this module is loaded: programs under test replace the global ones by clocks of their own, and a
 * connection lives by the real one.
 */
export const later = globalThis.setTimeout;
export const forget = globalThis.clearTimeout;
export const soon = globalThis.setImmediate;
const realDate = globalThis.Date;

/** Milliseconds since the epoch, by the real clock. */
export const now = (): number => realDate.now();

export const sleep = (ms: number): Promise<void> => new Promise(resolve => later(resolve, ms));
