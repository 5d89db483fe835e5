"""Warnings as a person who trains reads them."""

import warnings

from sdxl_lora.startup import quiet_libraries


def test_our_warnings_are_a_line_and_those_of_libraries_as_python_shows_them(monkeypatch, capsys):
    of_python = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, category, *place: of_python.append(message))
    quiet_libraries()
    warnings.showwarning("12 of 12 images have an empty caption", UserWarning, "settings.py", 129)
    warnings.showwarning("this goes away", FutureWarning, "library.py", 7)
    assert capsys.readouterr().err == "warning: 12 of 12 images have an empty caption\n"
    assert of_python == ["this goes away"]
