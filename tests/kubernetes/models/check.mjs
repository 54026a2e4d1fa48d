// Reads a JSON list of objects and says of each whether the operator that owns its kind would take it; one line each, status 1 for a wrong one.
// A field that the kind does not have is wrong, too: models pass over it, and so do API servers, which leave it out without a word.
import { readFileSync } from "node:fs";

const PACKAGES = {
  "cert-manager.io": "cert-manager",
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};

// A model looks at every field that it knows. What it did not look at in a whole object that it found well, it does not know.
function watched(value, path, seen) {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      if (!Object.hasOwn(target, key)) return Reflect.get(target, key);
      const below = `${path}/${key}`;
      seen.add(below);
      return watched(target[key], below, seen);
    },
  });
}

function fields(value, path = "") {
  if (value === null || typeof value !== "object") return [];
  return Object.entries(value).flatMap(([key, held]) => [`${path}/${key}`, ...fields(held, `${path}/${key}`)]);
}

let wrong = false;
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const name = `${object.kind} ${object.metadata?.name}`;
  const group = object.apiVersion.split("/")[0];
  try {
    const model = await import(`@kubernetes-models/${PACKAGES[group]}/${object.apiVersion}/${object.kind}`);
    const held = new model[object.kind](object);
    const seen = new Set();
    held.validate.call(watched(held, "", seen));
    const unknown = fields(object).filter((field) => !seen.has(field));
    if (unknown.length) throw new Error(`unknown: ${unknown.join(", ")}`);
    console.log(`${name}: well`);
  } catch (error) {
    wrong = true;
    console.log(`${name}: ${error.message}`);
  }
}
process.exitCode = wrong ? 1 : 0;
