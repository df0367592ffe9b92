"""A run in; all that whoever deploys it must know, as JSON and as texts for a file's metadata, out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import featcache
from heads.serving.loaded_run import LoadedRun
from heads.serving.servable import Servable

#: Version of the keys below.
VERSION = 1


def description(run: LoadedRun, servable: Servable) -> dict[str, Any]:
    """What an exported file tells of itself.

    Keys: ``export_version``, ``featcache_version``; ``run``, ``kind``, ``method``, ``created``, ``dataset``;
    ``class_names`` in the order of the outputs' columns; ``backbone``, ``weights_sha256``; ``preprocessing``, every
    number; ``input`` and ``outputs``; ``temperature``, which is part of the graph; ``test_accuracy`` with ``ci95`` and
    ``n_images``; ``arithmetic``, of the file and of the features that the head was fitted on.
    """
    record, embedding = run.record, run.embeddings[0]
    test, whole = record["metrics"]["test"], servable.fitting is not None
    return {
        "export_version": VERSION,
        "featcache_version": featcache.__version__,
        "run": run.folder.resolve().name,
        "kind": record["kind"],
        "method": record["method"],
        "created": record["created"],
        "dataset": record["dataset"]["name"],
        "class_names": list(run.class_names),
        "backbone": run.backbone.name,
        "weights_sha256": run.backbone.weights["sha256"],
        "preprocessing": run.backbone.preprocessing.to_json(),
        "input": {
            "name": "images",
            "shape": list(servable.input_shape),
            "dtype": "uint8" if whole else "float32",
            "values": "RGB, 0 to 255" if whole else "RGB, 0 to 1",
            "done_inside": ["resize", "crop", "normalise"] if whole else ["normalise"],
        },
        "outputs": {name: ["batch", len(run.class_names)] for name in servable.outputs},
        "temperature": run.temperature,
        "test_accuracy": {
            "accuracy": test["accuracy"],
            "ci95": test["accuracy_ci95"],
            "n_images": record["dataset"]["n_test"],
        },
        "arithmetic": {"file": "fp32", "features": embedding.precision, "storage": embedding.storage},
    }


def as_texts(told: Mapping[str, Any]) -> dict[str, str]:
    """The same with every value a text: names as they are, all else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}
