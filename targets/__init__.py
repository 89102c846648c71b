"""What a target is: capabilities, schedule rules, pipeline, toolchain."""
