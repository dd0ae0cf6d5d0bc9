"""Mail that comes back: taken over SMTP, kept until it is understood, recorded.

The listener answers 250 only for what is on disk, and takes mail for return paths of our own making and for
complaints, for nobody else. The processor reads the spool in its own time, in a process of its own, so that a storm of
bounces costs the listener nothing and the daemons less. Between the commit and the removal of a file nothing can be
lost, and what is read twice counts once (`mta.queue.feedback`).
"""
