"""The parts of trackio without a public name: they keep its dashboard closed."""

from __future__ import annotations


def keep_dashboard_closed(project: str, space_id: str | None) -> None:
    """Keep trackio from serving its dashboard, on Colab and Kaggle at a public address.

    It does so when a project is opened in a notebook, but not for a project that is open already.
    `space_id` is the Space to which the run is logged, if any. Does nothing without trackio.
    """
    try:
        import trackio
    except ImportError:
        return  # the Trainer reports it
    elsewhere = trackio.utils.resolve_space_id_and_server_url(space_id, None)
    if trackio.utils.is_in_notebook() and not any(elsewhere):
        trackio.context_vars.current_project.set(project)
