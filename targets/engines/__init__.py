"""How is a TensorRT engine built, described and compared? What it keeps beside itself is here too."""
