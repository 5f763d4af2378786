"""Changes of stored files that keep their digests right, as only a writer of such files could make them."""

import json

from gmlib.files import json_digest, write_json


def content_of(path):
    """The content of a JSON file that gmlib wrote, without its digest."""
    content = json.loads(path.read_text())
    del content["sha256"]
    return content


def change(path, **changes):
    """Change values in a JSON file. Of a dict only the given values change."""
    content = content_of(path)
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    if "recipe" in changes and isinstance(content["recipe"], dict):
        content["recipe_hash"] = json_digest(content["recipe"])
    write_json(path, content)
