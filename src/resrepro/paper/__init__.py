"""The paper's artefacts, made from run directories."""
