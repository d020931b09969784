"""Keywords of transformers' from_pretrained that change nothing here, and those that are refused."""

HARMLESS = {
    "low_cpu_mem_usage": True, "use_safetensors": True, "attn_implementation": "eager", "trust_remote_code": False,
    "use_auth_token": None, "resume_download": True, "proxies": {}, "load_in_8bit": False, "quantization_config": None,
    "offload_folder": "offload", "from_tf": False, "from_flax": True, "ignore_mismatched_sizes": False, "variant": None,
    "code_revision": "main", "adapter_name": "default", "adapter_kwargs": {}, "generation_config": None,
}  # fmt: skip
REFUSED = {
    "trust_remote_code": True, "load_in_8bit": True, "load_in_4bit": True, "quantization_config": {"bits": 8},
    "attn_implementation": "flash_attention_2", "ignore_mismatched_sizes": True, "variant": "fp16",
    "max_memory": {"cpu": "1GB"}, "gguf_file": "q4.gguf", "adapter_kwargs": {"token": "hf_1"},
    "generation_config": {"num_beams": 2},
}  # fmt: skip
