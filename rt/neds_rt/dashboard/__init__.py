"""The page of `neds-rt dashboard`: a process of its own that listens to a server and shows it.

`history` keeps the last seconds of decodes and bins, `feed` fills it from the sockets, `traces` and
`figures` draw, `cards` writes the words, `page` puts them together, `app` serves them over HTTP.
Bokeh (extra `dashboard`) is imported only by the functions that draw.
"""
