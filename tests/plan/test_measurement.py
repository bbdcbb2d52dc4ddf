import pytest
from test_plan import RATES, configuration, record

from forceuq.backbones import orb
from forceuq.configuration import load_configuration
from forceuq.errors import FitError
from forceuq.plan import report, work_of
from forceuq.throughput import REVISION, read_throughput, write_throughput
from forceuq.throughput_fits import Trials
from forceuq.throughput_measurement import measurable, measure, measured_here

TINY = {
    "latent_dim": 16, "base_mlp_hidden_dim": 24, "base_mlp_depth": 1, "head_mlp_hidden_dim": 20,
    "num_message_passing_steps": 2,
}  # fmt: skip
METHODS = {
    "nlml": {"kind": "bll", "label": "1", "options": {"projection": "nlml", "hyperparameters": "nlml"}},
    "mse": {"kind": "bll", "label": "2", "options": {"projection": "mse"}},
    "pretrained": {"kind": "bll", "label": "3", "options": {"projection": "pretrained"}},
}
WANTED = {
    "read", "cache", "metrics", "bootstrap", "training bll", "training bll mse", "single fit bll", "prediction bll",
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(orb._ARCHITECTURES, "orb-v3-direct-20-omat", TINY)
    values = configuration("mptrj.yaml").model_dump(mode="json")
    values["methods"] = METHODS
    values["features"]["device"] = "cpu"
    return load_configuration({**values, "device": "cpu"})


def test_everything_is_measured_with_random_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("forceuq.throughput_fits._TELLING_SECONDS", 0.01)
    found = measure(tiny, tmp_path, structures=5)
    assert (found.device, found.backbone, found.width) == ("cpu", "orb-v3-direct-20-omat", 16)
    assert found.hardware
    assert set(found.rates) == WANTED


def test_a_rate_is_measured_with_an_entry_that_takes_it(tiny):
    found = measurable(tiny)
    assert set(found) == WANTED
    assert found["training bll"] == "nlml"
    assert found["training bll mse"] == "mse"
    assert found["single fit bll"] == "pretrained"
    assert measurable(tiny, "cuda") == {}
    fits = {item.name: item.rate for item in work_of(tiny, None) if item.stage == "fit"}
    assert fits == {"nlml": "training bll", "mse": "training bll mse", "pretrained": "single fit bll"}
    # A record of before knows one rate for both.
    assert record().rate("training bll mse") == record().rate("training bll") == RATES["training bll"]
    assert record().rate("training lora") is None


class Fake:
    """A kind of method on a clock of its own: the first fit of all is slow, each has a start, and then atoms count."""

    COLD, START, EPOCH, FIT, PREDICT = 30.0, 2.0, 1e4, 4e4, 8e4

    def __init__(self):
        self.now, self.fits = 0.0, []

    def fit(self, data, options, seed, checkpoints, starts_from=None):
        assert not any(checkpoints.iterdir())
        epochs = 0 if options.projection == "pretrained" else options.max_epochs
        assert options.patience >= options.max_epochs
        atoms = sum({"train": 100, "wide-train": 4000, "more-train": 80_000}[path.name] for path in data.train)
        self.now += self.START + atoms / self.FIT + epochs * 1.25 * atoms / self.EPOCH
        self.now += 0 if self.fits else self.COLD
        self.fits.append(atoms)
        return self

    def load(self, directory, source):
        return self

    def save(self, directory):
        pass

    def predict(self, folders, structures):
        self.now += (
            sum({"train": 100, "wide-train": 4000, "more-train": 80_000}[path.name] for path in folders) / self.PREDICT
        )
        return []


@pytest.fixture
def trial(tiny, tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setattr("forceuq.throughput_fits.load_method", lambda kind: fake)
    monkeypatch.setattr("forceuq.throughput_fits.time.perf_counter", lambda: fake.now)
    atoms = {"wide-train": 4000, "wide-val": 1000, "more-train": 80_000}
    trials = Trials(tmp_path, tiny, tmp_path / "weights", "cpu")
    return fake, lambda rate, method: trials.rate(rate, method, atoms)


def test_starts_and_the_first_fit_count_for_nothing(trial):
    _, rate = trial
    assert rate("training bll", "nlml") == pytest.approx(Fake.EPOCH)
    assert rate("single fit bll", "pretrained") == pytest.approx(Fake.FIT)
    assert rate("prediction bll", "pretrained") == pytest.approx(Fake.PREDICT)


def test_what_the_clock_cannot_tell_is_no_rate(trial, monkeypatch):
    fake, rate = trial
    for name in ("EPOCH", "FIT", "PREDICT"):
        monkeypatch.setattr(fake, name, 1e12)
    assert rate("training bll", "nlml") is None
    assert rate("single fit bll", "pretrained") is None
    assert rate("prediction bll", "pretrained") is None


def test_a_fit_that_fails_is_no_rate(trial, monkeypatch, caplog):
    fake, rate = trial

    def fails(*arguments):
        raise FitError("no maximum")

    monkeypatch.setattr(fake, "fit", fails)
    assert rate("single fit bll", "pretrained") is None
    assert "single fit bll was not measured with 'pretrained': no maximum" in caplog.text


def test_a_disturbance_of_a_short_fit_does_not_count(trial, monkeypatch):
    fake, rate = trial
    fit, disturbed = fake.fit, iter([0.0, 0.0, 0.0, 2.0])

    def sometimes(*arguments):
        fake.now += next(disturbed, 0.0)
        return fit(*arguments)

    monkeypatch.setattr(fake, "fit", sometimes)
    monkeypatch.setattr(fake, "EPOCH", 1e5)
    assert rate("training bll", "nlml") == pytest.approx(1e5)


def test_a_long_start_needs_a_longer_difference(trial, monkeypatch):
    fake, rate = trial
    fit, disturbed = fake.fit, iter([0.0, 0.0, 3.0, -3.0, 3.0])

    def sometimes(*arguments):
        fake.now += next(disturbed, 0.0)
        return fit(*arguments)

    monkeypatch.setattr(fake, "fit", sometimes)
    monkeypatch.setattr(fake, "START", 40.0)
    assert rate("training bll", "nlml") == pytest.approx(Fake.EPOCH, rel=0.2)


@pytest.fixture
def calls(monkeypatch):
    found = []

    def once(configuration, folder, device, structures, wanted):
        found.append(set(wanted))
        return record(rates=dict.fromkeys(wanted, 1.0), revision=REVISION)

    monkeypatch.setattr("forceuq.throughput_measurement.measure", once)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return found


def test_what_was_measured_is_kept(tiny, tmp_path, calls):
    assert measured_here(tiny, tmp_path, 10) == measured_here(tiny, tmp_path, 10)
    assert calls == [WANTED]


def test_what_the_plan_needs_and_a_kept_record_lacks_is_measured(tiny, tmp_path, calls):
    measured_here(tiny, tmp_path, 10)
    (file,) = tmp_path.iterdir()
    kept = {**dict.fromkeys(WANTED - {"training bll"}, 2.0), "prediction lora": 3.0}
    write_throughput(record(rates=kept, revision=REVISION), file)
    found = measured_here(tiny, tmp_path, 10)["cpu"]
    assert calls[1:] == [{"training bll"}]
    assert found.rates == {**kept, "training bll": 1.0}


def test_a_record_of_an_earlier_way_of_measuring_is_measured_anew(tiny, tmp_path, calls):
    measured_here(tiny, tmp_path, 10)
    (file,) = tmp_path.iterdir()
    write_throughput(record(rates=dict.fromkeys(WANTED, 2.0)), file)
    assert set(measured_here(tiny, tmp_path, 10)["cpu"].rates.values()) == {1.0}
    assert calls == [WANTED, WANTED]


def test_without_weights_that_can_be_made_the_rest_is_measured(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.delattr(orb, "write_random")
    found = measure(tiny, tmp_path, structures=5)
    assert set(found.rates) == {"read", "metrics", "bootstrap"}
    assert "orb.py has no write_random" in caplog.text
    write_throughput(found, tmp_path / "record.yaml")
    assert read_throughput(tmp_path / "record.yaml").width is None
    # It is said whenever there is a plan, not only when something is measured.
    caplog.clear()
    monkeypatch.setattr("forceuq.throughput_measurement.measure", lambda *arguments: found)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for _ in range(2):
        assert measured_here(tiny, tmp_path / "kept", 10)["cpu"] == found
    assert caplog.text.count("orb.py has no write_random") == 2
    rows = [line for line in report(tiny, {"cpu": found}, 10.5).splitlines() if line.startswith(("| cache", "| fit"))]
    known = [row.split(" | ")[1] for row in rows if "not known" not in row]
    # Its data come as statistics of shards, and those are not known.
    assert known == ["pretrained"]
    assert len(rows) == 6
