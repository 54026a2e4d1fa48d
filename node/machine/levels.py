"""Feature levels: which meaning the entries of the log have.

The level is replicated (cluster/levels.py says when it rises): an entry raises it, and it never goes back. A rule of `apply` that
changes, and an operation or a field that is new, belongs to a level of its own here; below it the old rule holds, byte for byte, so that
two versions of the program can serve one cluster. `State.level` is the level in force.

Level 1, each rule with what holds below it:

* `cron.fire`: a time that is skipped because the last job is unfinished does not use up the cron's limit. Below: it does.
* A lifo job that comes back (a failed run, a stall, the end of a delay, dlq.retry), or waits for no other job any more, comes first.
  Below: where its creation puts it.
* A run that takes longer than its `timeout` is a stall, too: it counts as one, says `job:stalled`, and too many of them end the job.
  Below: it is a failed run and no more.
* `job.clear_logs` and `key.free_of_job` with `known` are refused for an unknown job. Below: they do nothing.
* A token of an earlier delivery ends no later one (ack, fail, progress, moves), also where the run has no lock; such a run takes
  no token that was made for a lock, of whatever job (`Spent.is_made`). It takes no token at all where the operation says `must_hold`,
  and in `job.move_to_wait` and `job.move_to_delayed` with `only_active`. Below: a run without a lock takes any token.
* `job.change_delay` takes a locked run away only by its token. Below: by whatever is sent.
* `job.push` with the id of a dead letter gives that an id of its own. Below: the dead letter is deleted.
* `queue.obliterate` removes the crons and repetitions of the queue. Below: only what is to follow completed jobs.
* `queue.drain`, `queue.thin` and `queue.clean` with `spare_repeating` leave the jobs with which repetitions and crons wait
  (`cron.fire` notes the last job of every cron for that); without it a job that repeats and is not finished comes again at its next time
  (`Schedule.held`), also one whose time to live passed. Below: those jobs go, and their repetition with them.
* The figures of a registered worker follow the jobs that are taken with its id as owner. Below: heartbeats alone change them.
* `worker.unregister` with `heard_at` leaves a worker alone that has been heard of since. Below: there is no such field, and what
  goes with a connection is forgotten when it has been silent for long enough.
* Failed jobs of a queue are bounded in bytes (`QueueSettings.keep_failed_bytes`), and so are the failed runs that a job remembers
  (`RUNS_CHARS_MAX`, `STEP_CHARS_MAX`) and log lines (`state/logs.py`). Below: in number.
* `retention.set`, `retention.thin` and `queue.follow_retention`; what is set for a queue itself is noted (`QueueSettings.own`). Below:
  they cannot be, and nothing is noted.
* The digest chains entries and outcomes, and another one what the state holds (`machine.py`, `contents.py`); `State.mark` stays 0.
  Below: one digest of the clock, some counters and that sum.
* `queue:created` comes with the first job of a queue, and a cron that is set for another queue says `cron:deleted` to the one that it left.
  Below: with whatever makes a record of the queue; and only `cron:updated`.
* There are at most 100,000 queues (`State.queue`), and the jobs of one push depend on 50,000 ids at most. Below: no bound.
* What waits for all webhooks together is bounded, and so are the deliveries that one entry brings (`Webhooks.begin`). Below:
  each outbox by itself.
* `dlq.retry`, `dlq.purge` and `queue.retry_completed` of many jobs come in parts (new fields: `so_far`, `part`, the `count` of a purge);
  bounds that shrink let go of 5,000 finished jobs an entry (`State.overfull`), and a check of stalls ends 2,000 locks;
  more than 10,000 jobs that wait for others are told of their ends by the entries that follow (`State.unreleased`);
  so do the timers of more than 10,000 jobs come after a change of settings (`State.retiming`).
  Below: all in one entry.
* `dlq.retry` with `filter` revives what meets its conditions. Below: it cannot be.
* When jobs completed and failed for good is counted by minute (`Queue.completions`, `failures`). Below: it is not.
* `job.requeue`; `job.push` goes by `Options.dedup`. Below: the first cannot be, the second keeps the key and no more.
* `group.set_rate_limit` and `group.hold`; `GroupSettings.rate` and `Queue.group_uses`. Below: they cannot be, and groups have neither.
* `group.set_usual` and `QueueSettings.groups`. Below: groups without settings of their own have one active job at once.
* `request.once` names whose key it is (`scope`), and what the key is below (`earlier`). Where too many outcomes are kept, the scope
  that has most loses its oldest, of which a digest stays: a repeat is refused as `key_forgotten`. One without a scope is refused,
  for its sender to send it again. Below: keys hold their token's text, the oldest of all go first, and a repeat of those is applied anew.
* Flows (`flow.add` and its siblings, `job.remove` with `children`, `job.push` with `ties`): a job's record says what ties it to
  others (`TiedDependencies`), and whatever ends, revives or removes it tells them (`lifecycle/parents.py`). Below: no job is tied.
* BullMQ's backend protocol (all operations named `bullmq.…`): streams of events, fields of queues, sessions, who is connected, long logs
  (`state/bullmq/`, `state/logs.py`). Below: there is none of it.
"""

from __future__ import annotations

KNOWN = 1
"""The highest level that this program knows. A state machine by itself begins here; a cluster begins at 0 and is raised."""
