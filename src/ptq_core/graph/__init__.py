"""Models as graphs: load and save, preparation passes, facts about operators. Built on onnx_ir."""
