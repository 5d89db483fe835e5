"""A WD tagger at tiny size: a real ONNX model with random weights and a made-up list of tags."""

import csv

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CELL = 32, 8  # of the input, and of the squares whose mean colours decide; in pixels
TAGS = [
    ("general", 9), ("sensitive", 9), ("questionable", 9), ("explicit", 9), ("1girl", 0), ("long_hair", 0),
    ("^_^", 0), ("star_(symbol)", 0), ("monochrome", 0), ("hatsune_miku_(vocaloid)", 4), ("cat_(nier)", 4),
]  # fmt: skip


def save_tiny_tagger(folder, tags=TAGS, seed=0, outputs=None, images="images", side=SIDE, last="Sigmoid"):
    """Write model.onnx and selected_tags.csv; return weights (3 * cells, tags) and biases (tags,) of its one layer.

    Args:
        outputs: of the model, if not as many as tags.
        images: batch size of the model: a name for any number.
        last: the operation on the layer's output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = outputs or len(tags)
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 3, (3 * (side // CELL) ** 2, number)).astype(np.float32)
    biases = rng.normal(0, 1, number).astype(np.float32)
    constants = {"weights": weights / 255, "biases": biases}
    nodes = [
        helper.make_node("Transpose", ["input"], ["colours first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["colours first"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "biases"], ["logits"]),
        helper.make_node(last, ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [images, side, side, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [images, number])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    with open(folder / "selected_tags.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["tag_id", "name", "category", "count"])
        table.writerows([number, name, category, 1000] for number, (name, category) in enumerate(tags))
    return weights, biases


def expected_probabilities(image, weights, biases):
    """Return the tiny tagger's output, computed in numpy, for an image that needs no resizing.

    Returns:
        (tags,) in the order of the list.
    """
    width, height = image.size
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    square = np.full((SIDE, SIDE, 3), 255.0)
    square[top : top + height, left : left + width] = np.asarray(image)
    cells = square[:, :, ::-1].reshape(SIDE // CELL, CELL, SIDE // CELL, CELL, 3).mean((1, 3))
    logits = cells.transpose(2, 0, 1).reshape(-1) / 255 @ weights.astype(np.float64) + biases
    return 1 / (1 + np.exp(-logits))
