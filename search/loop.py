"""The search itself: ask, score, append to the journal, tell."""

import math
from collections.abc import Iterator, Sequence

from search.candidate import Candidate, Proposal
from search.evolution import pareto_front
from search.journal import Journal
from search.population import first_population
from search.scoring import HARDWARE
from search.session import JOURNAL, Search
from search.workers import Failed, Result, Workers
from supernet.cli import progress
from supernet.errors import UserError
from supernet.randomness import generator

FAILED = "failed"  # how `stopped` begins where no score could be had


def first_proposals(search: Search) -> list[Proposal]:
    """Return what a search begins with."""
    config, scorer = search.config, search.scorer
    return first_population(
        scorer.trained.supernet.space,
        scorer.trained.gates,
        scorer.fits,
        config.evaluations,
        config.seed,
        **config.first_population,
        solutions=search.solutions,
    )


def evolve(search: Search) -> list[Candidate]:
    """Evaluate candidates until the journal holds as many as asked for; return them."""
    config, scorer = search.config, search.scorer
    space = scorer.trained.supernet.space
    journal = Journal(search.folder / JOURNAL, space)
    strategy = search.make_strategy(first_proposals(search))
    done = 0
    with (
        search.workers() as workers,
        progress(total=config.evaluations, initial=len(journal.candidates), unit="net", desc="search") as bar,
    ):
        while done < config.evaluations:
            rng = generator(config.seed, "ask", strategy.generation)
            proposals = strategy.ask(min(config.batch, config.evaluations - done), rng)
            if not proposals:
                bar.write(f"{done} candidates are all that the strategy finds to ask for")
                break
            # In order of genome, neighbors share their first layers, whose activations are reused.
            proposals = sorted(proposals, key=lambda p: p.genome)
            batch = journal.candidates[done : done + len(proposals)]  # from before a kill
            _check_same(search, journal, batch, proposals)
            for candidate in _evaluated(search, workers, proposals, batch, journal.candidates[:done]):
                journal.append([candidate])
                batch.append(candidate)
                bar.update()
            strategy.tell(batch)
            done += len(batch)
            bar.set_postfix(_progress(search, journal.candidates), refresh=False)
    return journal.candidates


def _check_same(search: Search, journal: Journal, known: Sequence[Candidate], proposals: Sequence[Proposal]) -> None:
    for candidate, proposal in zip(known, proposals, strict=False):
        costs = search.scorer.known(proposal.genome).items()
        if candidate.genome == proposal.genome and any(candidate.scores.get(name) != cost for name, cost in costs):
            raise UserError(
                f"{journal.path} does not continue: the costs of candidate {candidate.id} were others; has"
                f" {HARDWARE} changed? fresh=true starts over"
            )
        if candidate.genome != proposal.genome:
            raise UserError(
                f"{journal.path} does not continue: candidate {candidate.id} is not what this version of the program"
                " proposes there; fresh=true starts over"
            )


def _evaluated(
    search: Search,
    workers: Workers,
    proposals: Sequence[Proposal],
    known: Sequence[Candidate],
    earlier: Sequence[Candidate],
) -> Iterator[Candidate]:
    """Yield the candidates of a batch that are not known yet, in order: those that pass every hurdle in full.

    Args:
        search: the search.
        workers: that score.
        proposals: the whole batch.
        known: its first candidates, from the journal.
        earlier: candidates of the batches before.
    """
    scorer = search.scorer
    genomes = [proposal.genome for proposal in proposals]
    scores = [dict(c.scores) for c in known] + [scorer.known(genome) for genome in genomes[len(known) :]]
    failed = {i: c.stopped for i, c in enumerate(known) if c.stopped is not None and c.stopped.startswith(FAILED)}

    def divergences(indices: Sequence[int], level: int) -> list[float | str]:
        results = workers.map([(genomes[i], level) for i in indices])
        name = scorer.hurdles.name(level)
        return [_divergence(result, name) for result in results]

    stopped = scorer.hurdles.run(
        scores,
        [c.scores for c in earlier],
        divergences,
        scorer.known_names,
        search.names,
        scorer.violation,
        search.floors,
        scorer.fitness,
        failed,
    )
    new = range(len(known), len(genomes))
    results = workers.map([(genomes[i], None) for i in new if i not in stopped])
    for i in new:
        if i not in stopped:
            result = next(results)
            if isinstance(result, Failed):
                stopped[i] = f"{FAILED}: {result.reason}"
            else:
                odd = [f"{name} is {score}" for name, score in result.items() if not math.isfinite(score)]
                scores[i] |= {name: score for name, score in result.items() if math.isfinite(score)}
                stopped |= {i: f"{FAILED}: {', '.join(odd)}"} if odd else {}
        violation = scorer.violation(scores[i])
        yield Candidate(len(earlier) + i, genomes[i], scores[i], violation, proposals[i].lineage, stopped.get(i))


def _divergence(result: Result, name: str) -> float | str:
    """Return the divergence, or why there is none."""
    if isinstance(result, Failed):
        return f"{FAILED}: {result.reason}"
    return result[name] if math.isfinite(result[name]) else f"{FAILED}: {name} is {result[name]}"


def _progress(search: Search, candidates: Sequence[Candidate]) -> dict[str, str]:
    target = next(iter(search.scorer.targets))
    front = pareto_front(candidates, search.scorer.names(target))
    if not front:
        return {"feasible": "none"}
    first = search.names[0]
    return {"front": str(len(front)), f"best {first}": f"{front[0].scores[first]:z.4f}"}
