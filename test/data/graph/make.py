"""Makes the .onnx files of this directory with the Python package onnx (1.23), which writes what our own writer does not:
data in typed fields, axes without a name, documentation, functions. Run here: python make.py"""
import onnx
from onnx import TensorProto as T, helper as h


def save(name, graph, opset=23, functions=()):
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset), h.make_opsetid("local", 1)][: 1 + bool(functions)],
                         functions=list(functions), ir_version=10, doc_string="documentation")
    onnx.save(model, f"{name}.onnx")


x = h.make_tensor_value_info("x", T.FLOAT, ["batch", None, 3])
y = h.make_tensor_value_info("y", T.FLOAT, ["batch", None, 3])
relu = h.make_node("Relu", ["x"], ["y"], doc_string="documentation")
constants = [
    h.make_tensor("float32", T.FLOAT, [3], [0.5, -1.25, 3e-5]),
    h.make_tensor("float64", T.DOUBLE, [2], [0.1, -2.0]),
    h.make_tensor("float16", T.FLOAT16, [2], [0.5, -65504.0]),
    h.make_tensor("bfloat16", T.BFLOAT16, [2], [1.0, -2.0]),
    h.make_tensor("int8", T.INT8, [2], [-128, 127]),
    h.make_tensor("uint8", T.UINT8, [2], [0, 255]),
    h.make_tensor("int32", T.INT32, [], [-7]),
    h.make_tensor("uint32", T.UINT32, [1], [4294967295]),
    h.make_tensor("int64", T.INT64, [2], [9223372036854775807, -9223372036854775808]),
    h.make_tensor("bool", T.BOOL, [2], [True, False]),
]
save("typed-fields", h.make_graph([relu], "typed", [x], [y], initializer=constants, doc_string="documentation"))
save("old-opset", h.make_graph([relu], "old", [x], [y]), opset=13)
save("default-input", h.make_graph([relu], "default", [x], [y], initializer=[h.make_tensor("x", T.FLOAT, [1, 1, 3], [1, 2, 3])]))
save("text", h.make_graph([relu], "text", [x], [y], initializer=[h.make_tensor("words", T.STRING, [1], [b"word"])]))
save("sequence", h.make_graph([h.make_node("SequenceConstruct", ["x"], ["z"])], "sequence", [x], [h.make_tensor_sequence_value_info("z", T.FLOAT, None)]))
double = h.make_function("local", "Double", ["a"], ["b"], [h.make_node("Add", ["a", "a"], ["b"])], [h.make_opsetid("", 23)])
save("function", h.make_graph([h.make_node("Double", ["x"], ["y"], domain="local")], "function", [x], [y]), functions=[double])
