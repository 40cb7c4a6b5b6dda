"""llama.cpp's own converter on a checkpoint of ours, whose tokenizer it does not know or lacks.

python benchmarks/to_gguf.py LLAMA_CPP_FOLDER CHECKPOINT OUT.gguf   (its requirements installed)
"""

from __future__ import annotations

import os
import runpy
import sys

folder, checkpoint, output = (os.path.abspath(path) for path in sys.argv[1:4])
sys.path[:0] = [folder, os.path.join(folder, "gguf-py")]
model = __import__("conversion.gpt_oss", fromlist=["GptOssModel"]).GptOssModel
if os.path.exists(os.path.join(checkpoint, "tokenizer.json")):
    # It splits text as o200k does, whatever its vocabulary.
    model.get_vocab_base_pre = lambda self, tokenizer: "gpt-4o"
else:
    model.set_vocab = lambda self: (
        self._set_vocab_none(),
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"]),
    )
sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", output, "--outtype", "f16"]
runpy.run_path(os.path.join(folder, "convert_hf_to_gguf.py"), run_name="__main__")
