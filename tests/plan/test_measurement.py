import pytest
from test_plan import configuration

from forceuq.backbones import orb
from forceuq.configuration import load_configuration
from forceuq.throughput_measurement import measure, measured_here

TINY = {
    "latent_dim": 16, "base_mlp_hidden_dim": 24, "base_mlp_depth": 1, "head_mlp_hidden_dim": 20,
    "num_message_passing_steps": 2,
}  # fmt: skip
METHODS = {
    "bll": {"kind": "bll", "label": "BLL", "options": {"projection": "mse", "hyperparameters": "evidence"}},
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(orb._ARCHITECTURES, "orb-v3-direct-20-omat", TINY)
    values = configuration("mptrj.yaml").model_dump(mode="json")
    values["methods"] = METHODS
    return load_configuration({**values, "device": "cpu"})


def test_everything_is_measured_with_random_weights(tiny, tmp_path):
    found = measure(tiny, tmp_path, structures=5)
    assert (found.device, found.backbone, found.width) == ("cpu", "orb-v3-direct-20-omat", 16)
    assert found.hardware
    assert set(found.rates) >= {"read", "cache", "metrics", "bootstrap", "single fit bll", "prediction bll"}


def test_what_was_measured_is_kept(tiny, tmp_path, monkeypatch):
    calls = []

    def once(*arguments):
        from test_plan import record

        calls.append(arguments)
        return record(rates={"prediction bll": 1.0, "bootstrap": 1.0})

    monkeypatch.setattr("forceuq.throughput_measurement.measure", once)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert measured_here(tiny, tmp_path, 10) == measured_here(tiny, tmp_path, 10)
    assert len(calls) == 1
