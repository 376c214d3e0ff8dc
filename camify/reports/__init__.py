"""Pages and tables: the page of a run, several runs side by side, HTML and Markdown tables.

Pictures are drawn in ``drawing``. Figures come from ``evaluation`` and from the run's folder.
A new page is a file with a function that fills a template, and its template beside it; ``html.py`` renders it.
"""
