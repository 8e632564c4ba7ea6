"""The flight recorder: a small record of each update of a run, and how to read and compare it."""

from helios.trainer.flight.reading import FlightRecord as FlightRecord
from helios.trainer.flight.reading import first_difference as first_difference
from helios.trainer.flight.reading import flight_record as flight_record
from helios.trainer.flight.reading import what_differs as what_differs
from helios.trainer.flight.record import Entry as Entry
