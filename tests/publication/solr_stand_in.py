"""Just enough of Solr for CKAN's write API: it takes every document and finds none, so CKAN reads its database."""

from __future__ import annotations

import sys
from pathlib import Path

import flask

EMPTY = {"responseHeader": {"status": 0}, "response": {"numFound": 0, "start": 0, "docs": []}, "facet_counts": {}}


def build(schema: str) -> flask.Flask:
    app = flask.Flask("solr")

    @app.route("/solr/ckan/<path:action>", methods=["GET", "POST"])
    def answer(action: str) -> flask.typing.ResponseReturnValue:
        if action == "schema":
            return flask.Response(schema, mimetype="application/xml")
        return EMPTY if action.startswith(("select", "query")) else {"responseHeader": {"status": 0}, "status": "OK"}

    return app


if __name__ == "__main__":
    build(Path(sys.argv[1]).read_text()).run(port=int(sys.argv[2]))
