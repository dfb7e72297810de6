// @ts-check
// Runs the model beside the page, so that drawing goes on meanwhile: by WebGPU where there is one, else by WebAssembly.

// @ts-ignore: it lies beside the page, as `jobs/edit.py --static` writes it
import * as ort from "../onnxruntime/ort.webgpu.min.mjs";

ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

/** @type {Promise<any> | null} */
let session = null;

async function open() {
  const model = new URL("../model.onnx", import.meta.url).href;
  const hasGpu = "gpu" in navigator && (await /** @type {any} */ (navigator).gpu.requestAdapter());
  if (hasGpu) {
    try {
      return await ort.InferenceSession.create(model, { executionProviders: ["webgpu"] });
    } catch {
      // What the GPU cannot do, the processor can.
    }
  }
  return ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

self.onmessage = async ({ data: { at, size, maps } }) => {
  try {
    session ??= open();
    const inputs = Object.fromEntries(
      Object.entries(maps).map(([name, values]) => {
        const channels = values.length / (size * size);
        return [name, new ort.Tensor("uint8", values, [1, size, size, channels])];
      }),
    );
    const { picture } = await (await session).run(inputs);
    self.postMessage({ at, picture: picture.data });
  } catch (error) {
    session = null;
    self.postMessage({ at, error: `the model cannot be run here: ${error instanceof Error ? error.message : error}` });
  }
};
