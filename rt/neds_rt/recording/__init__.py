"""Two kinds of recording, which have nothing to do with each other but the frames they hold.

`neds-rt record`        spikes of a session, to train and calibrate from: `recorder.py` takes frames
                        into a spool (`spool.py`), `session.py` makes session files of it by the
                        assembler's rules (`streams.py`).
`neds-rt serve --record` a server's flight recorder: all that went in and came out, to be shown and
                        replayed afterwards. `flight.py` starts one, `header.py` is what it says of
                        itself, `tape.py` reads one, `changes.py` what it says of swaps and
                        fail-overs; `verdict.py`, `verify.py`, `succession.py` and `compare.py`
                        replay it through the same pipeline, `tape_session.py` plays its spikes
                        again as a live probe.
"""
