// Runs the page's endless loop until it is killed. Argument: what stands where the page says that the job is to be processed.
import { createRequire } from 'node:module';
import { pieces, runnable } from './pieces.mjs';

const { Worker, Job } = createRequire(import.meta.url)('../dist/cjs/index.js');
const place = '    // and set success variable if succeeded\n';
const loop = pieces.find(piece => piece.includes('while (1)'));
await runnable(loop.replace(place, `${place}${process.argv[2] ?? ''}`), { Worker, Job })();
