// The pieces of the page in examples/bullmq, as functions: what they name and do not make is given to them.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const ts = createRequire(import.meta.url)('typescript');
const AsyncFunction = (async () => undefined).constructor;
const page = readFileSync(new URL('../../../examples/bullmq/manual-processing.md', import.meta.url), 'utf8');

export const pieces = [...page.matchAll(/^```typescript\n(.*?)^```$/gms)].map(found => found[1]);

/** Makes a function of a piece that takes `given` by name and returns what it made of `made`. */
export function runnable(piece, given, made = []) {
  const code = ts.transpileModule(piece, { compilerOptions: { target: 'ES2022', module: 'ESNext' } }).outputText;
  const made_ = made.length ? `return { ${made.join(', ')} };` : '';
  return new AsyncFunction(...Object.keys(given), `${code}\n${made_}`).bind(null, ...Object.values(given));
}
