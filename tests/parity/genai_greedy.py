"""Run where onnxruntime-genai is: FOLDER and [[prompt ids, reply length], ...] as JSON.

Prints the greedy replies as JSON. Its replies leave out the stop token.
"""

import json
import sys

import onnxruntime_genai as og

folder, jobs = sys.argv[1], json.loads(sys.argv[2])
model = og.Model(folder)
replies = []
for prompt, count in jobs:
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + count)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    replies.append([int(token) for token in generator.get_sequence(0)[len(prompt) :]])
print(json.dumps(replies))
