"""Leave out of the pages what only a live kernel could use.

sphinx-thebe, which Jupyter Book always loads, writes the address of a CDN into every page. The saved state of
the widgets is of no use without a widget manager: the pages show the plain face of a slider instead.
"""

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


def drop_widget_state(app, pagename, templatename, context, doctree):
    scripts = context.get("script_files", [])
    scripts[:] = [s for s in scripts if getattr(s, "attributes", {}).get("type") != WIDGET_STATE]


def setup(app):
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
    app.registry.css_files[:] = [f for f in app.registry.css_files if f[0] != "sphinx-thebe.css"]
    app.connect("html-page-context", drop_widget_state, priority=900)  # after MyST-NB has added it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
