// Says which of the two builds is of which kind of module.
import { writeFileSync } from 'node:fs';

for (const [folder, type] of [['cjs', 'commonjs'], ['esm', 'module']]) {
  writeFileSync(new URL(`../dist/${folder}/package.json`, import.meta.url), `{"type":"${type}"}\n`);
}
