"""Reports of runs: tables beside the paper's, differences, plots, pictures; as HTML and as Markdown."""
