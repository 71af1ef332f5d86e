"""What the README tells a stranger to type works."""

import io
import re
import sys
from pathlib import Path

from mtkit.cli import _run, app
from mtkit.commands.options import GROUPS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")

# A second of training is enough to see that the commands work.
QUICK = [
    "model={d_model: 16, num_heads: 2, d_ff: 16, encoder_layers: 1, decoder_layers: 1}",
    "tokenizer.vocab_size=330",
    "training={max_steps: 4, validate_every: 4, save_every: 4, validation_sentences: 2, learning_rate: 0.001}",
]


def test_the_first_training_on_ones_own_files_works(corpus_files, tmp_path, monkeypatch, capsys):
    for name in ("train", "valid", "test"):
        for side, language in (("src", "fr"), ("tgt", "en")):
            text = (corpus_files.root / f"{name}.{side}").read_bytes()
            (tmp_path / f"{name}.{language}").write_bytes(text)
    monkeypatch.chdir(tmp_path)

    def mtkit(*arguments: str, text: str = "") -> str:
        """What a command prints; it must end well."""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code = _run([*arguments])
        out, error = capsys.readouterr()
        assert code == 0, error
        return out

    settings = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert settings
    (tmp_path / "my.yaml").write_text(settings[1], "utf-8")
    for command in ("mtkit run my.yaml", "mtkit translate runs/my < new.fr > new.en"):
        assert f"    {command}" in README
    assert "BLEU" in mtkit("run", "my.yaml", *QUICK)
    assert mtkit("translate", "runs/my", text="one two\n\nthree\n").count("\n") == 3
    python = 'import mtkit; print(len(mtkit.load("runs/my").translate(["Bonjour !"])))'
    assert python.split("print(len(")[1][:-2] in README
    exec(python, {})
    assert capsys.readouterr().out == "1\n"
    assert mtkit("config", "my.yaml").startswith("#")


def test_every_command_stands_in_the_table():
    cells = re.findall(r"^\| (`mtkit [^|]+) \|", README, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`mtkit ([a-z-]+)", cell)}
    commands = {c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback}
    assert named - {*GROUPS} == commands
    assert all(re.search(rf"`mtkit {group}\s", README) for group in GROUPS)
