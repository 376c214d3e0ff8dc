"""Pages and tables: the page of a run, several runs side by side, HTML and Markdown tables.

Pictures are drawn in ``drawing``; figures come from ``evaluation`` and from the run's folder.
"""
