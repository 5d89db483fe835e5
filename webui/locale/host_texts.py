"""The page's texts in whatever app it is a tab of, which need not know of them.

Gradio takes texts from the app's own I18n, or from none; apps in which the page is have ours in addition.
"""

import gradio as gr

from webui.locale.i18n import I18N

_ours: set[int] = set()  # ids of components, which Gradio gives once in a process


def bring_texts(components: set[int]) -> None:
    """From now on, an app with one of these among its components has the page's texts."""
    _ours.update(components)


def texts_of(app: gr.Blocks) -> gr.I18n | None:
    """The app's own texts, which win, and ours where the page is in it."""
    own = vars(app).get("i18n_instance")
    if _ours.isdisjoint(app.blocks) or own is I18N:
        return own
    theirs, ours = (own.translations_dict if own else {}), I18N.translations_dict
    return gr.I18n(
        **{language: {**ours.get(language, {}), **theirs.get(language, {})} for language in {**ours, **theirs}}
    )


def set_texts(app: gr.Blocks, own: gr.I18n | None) -> None:
    vars(app)["i18n_instance"] = own


setattr(gr.Blocks, "i18n_instance", property(texts_of, set_texts))  # noqa: B010 - mypy knows no such attribute
