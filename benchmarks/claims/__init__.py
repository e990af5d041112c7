"""Published statements about the five shells, each as a test stated before it is run.

Modules named as the shells define ``CLAIMS``; ``run.py`` tests them on the demo model and writes ``docs/claims.md``.
"""
