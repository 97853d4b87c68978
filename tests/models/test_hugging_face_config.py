"""What is taken of a config.json of transformers, which need not be installed for that."""

from compressbench.models.hugging_face import described


def test_what_names_code_or_kernels_is_left_out_at_any_depth():
    config = {
        "model_type": "vit",
        "hidden_size": 8,
        "_name_or_path": "a/b",
        "_attn_implementation": "hub/kernel",
        "attn_implementation": "hub/kernel",
        "auto_map": {"AutoModel": "a/b--code.Model"},
        "backbone_config": {"_attn_implementation": "hub/kernel", "depths": [1, 2]},
        "parts": [{"auto_map": {}, "width": 3}],
    }
    assert described(config) == {
        "model_type": "vit",
        "hidden_size": 8,
        "backbone_config": {"depths": [1, 2]},
        "parts": [{"width": 3}],
    }
