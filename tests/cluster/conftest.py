from tests.cluster.door_world import patient_door

__all__ = ("patient_door",)
