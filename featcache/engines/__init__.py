"""How a backbone is run: eager, compiled or by OpenVINO, checked against eager in float32."""
