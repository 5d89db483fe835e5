"""Save now, draw now: a file in a run's folder, done at the next step, and no bit of the training is another."""

from sdxl_lora.run.checkpoints import checkpoints, problem_with
from sdxl_lora.run.events import read_events
from sdxl_lora.run.session import read_status
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.runs import assert_equal_weights, column, weights_of

DRAWING = {"validation_prompt": ("sks, a cat",), "num_validation_images": 1, "validation_inference_steps": 1}


def ask_at(monkeypatch, asked):
    """Create these files while a step trains: {steps done before it: names}."""
    do = TrainStep.__call__

    def do_and_ask(self, batch, step, learning_rate):
        do(self, batch, step, learning_rate)
        for name in asked.get(step, ()):
            (self.run.folder / name).touch()

    monkeypatch.setattr(TrainStep, "__call__", do_and_ask)


def test_what_is_asked_for_is_done_after_the_step_and_changes_no_bit(train, tmp_path, monkeypatch):
    """Also where the settings would not look at the numbers for long, and with state that a drawing could touch."""
    settings = {**DRAWING, "max_train_steps": 6, "logging_steps": 100, "ema_decay": 0.9, "lora_dropout": 0.1}
    settings |= {"validation_steps": 100, "validation_split": 0.3, "early_stopping_patience": 1}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "save_now").touch()  # of a run before: nobody waits for it any more
    with monkeypatch.context() as patch:
        ask_at(patch, {1: ["save_now"], 3: ["sample_now", "save_now"]})
        train(**settings, output_dir=str(parts))
    assert [path.name for path in checkpoints(parts)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert all(problem_with(path) is None for path in checkpoints(parts))
    drawn = {path.name.partition("-prompt")[0] for path in (parts / "samples").glob("step-*.png")}
    assert drawn == {"step-000000", "step-000004", "step-000006"}
    assert column(parts, "step") == [2, 4, 6] and column(whole, "step") == [6]
    assert len(list(read_events(parts / "events.jsonl", "validation"))) == 2, "drawing is no validation"
    assert not (parts / "save_now").exists() and not (parts / "sample_now").exists()
    assert_equal_weights(weights_of(parts, 6), weights_of(whole, 6))


def test_a_drawing_without_prompts_is_refused_in_words_and_the_run_goes_on(train, monkeypatch):
    ask_at(monkeypatch, {0: ["sample_now"]})
    run = train(max_train_steps=2)
    said = [event["text"] for event in read_events(run / "events.jsonl", "message")]
    assert [text for text in said if "no sample prompts" in text and "--validation_prompt" in text]
    assert read_status(run)["state"] == "done" and not (run / "sample_now").exists()
