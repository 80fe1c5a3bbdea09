"""Engine `vllm`: vLLM (extra `vllm`) schedules and runs a model that writes.

Begin with `vllm_engine.py`. `vllm_model.py` opens vLLM in this process, over the node's copy of a
model directory, and has all calls to it; `usable.py` tells which jobs it can run. Tokens, rules,
texts, records and the reference check are those of engine `generate`.
"""
