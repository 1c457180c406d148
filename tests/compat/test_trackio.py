import pytest


@pytest.mark.parametrize(("notebook", "space"), [(True, None), (True, "me/space"), (False, None)])
def test_a_project_is_open_before_trackio_would_show_its_dashboard(monkeypatch, notebook, space):
    import trackio

    from pneumonia_hf.compat.trackio import keep_dashboard_closed

    monkeypatch.setattr(trackio.utils, "is_in_notebook", lambda: notebook)
    opened = trackio.context_vars.current_project
    before = opened.set(None)
    try:
        keep_dashboard_closed("xrays", space)
        assert opened.get() == ("xrays" if notebook and not space else None)
    finally:
        opened.reset(before)


def test_trackio_asks_for_the_open_project_and_the_notebook():
    import inspect

    import trackio

    source = inspect.getsource(trackio)
    assert "current_project" in source and "is_in_notebook" in source
