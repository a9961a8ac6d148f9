"""Reading the event files of a run, without TensorFlow."""

from tensorboardX.proto.event_pb2 import Event


def summaries(workdir):
    """(step, value) of all summaries in the event files of a folder."""
    found = []
    for file in sorted(workdir.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            at += 16 + length
    return found
