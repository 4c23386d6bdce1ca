"""What the net costs: its size, and on each target what the fitted hardware model predicts."""

from search.evaluation import Evaluation
from search.objectives import NetObjective, TargetObjective


class Size(NetObjective):
    """Size in MB (10^6 bytes) of all tensors of the GGUF file."""

    name = "size_mb"
    cheap = True

    def score(self, evaluation: Evaluation) -> float:
        """Return the size."""
        return evaluation.size_mb


class _Predicted(TargetObjective):
    """A metric of the target's hardware model, under the objective's own name."""

    cheap = True

    def score_on(self, evaluation: Evaluation, target: str) -> float:
        """Return the prediction."""
        return evaluation.cost(target, self.name)


class TimeToFirstToken(_Predicted):
    """Predicted time in ms from a prompt to its first new token."""

    name = "ttft_ms"


class Decode(_Predicted):
    """Predicted time in ms of a new token, median."""

    name = "decode_ms"


class DecodeP95(_Predicted):
    """Predicted time in ms of a new token, 95th percentile."""

    name = "decode_p95_ms"


class PeakMemory(_Predicted):
    """Predicted peak memory in MB of the process that runs the net."""

    name = "peak_memory_mb"


class KVBytesPerToken(_Predicted):
    """Bytes that the key-value cache grows by with each token, in the cache's format on the target."""

    name = "kv_bytes_per_token"


class BuildFailure(TargetObjective):
    """1 if the net cannot be exported to the target and loaded there, else 0. Each score takes a build."""

    name = "build_failure"

    def score_on(self, evaluation: Evaluation, target: str) -> float:
        """Return 1.0 or 0.0."""
        return 0.0 if evaluation.builds(target) else 1.0
