"""The table of calls: every method of BullMQ's `IQueueBackend` by its own name, in rows that the modules named for their subject have.

A call is `[number, name, queue, args]`, with a positive number where it changes something, a negative one where it reads or waits.
`args` is a list, in the order given here. `x?` may be null or left out from the end. *json* is
text of JSON as bytes, which nobody reads on the way; *ms* a time in milliseconds since the epoch, *dur* a duration in milliseconds; a
*job* is always the id within its queue, as text; a *key* is `prefix:name:id`. Rights are in brackets.

What is added, `new`, is a map:
    {id?: text (absent: the queue's next number), name, data: json, opts: json (all options, long names), timestamp: ms,
     delay?: dur, priority?: int, lifo?: bool, attempts?: int, waits?: bool (add to waiting-children),
     parent?: {id, queue (prefix:name), fpof?, cpof?, idof?, rdof?: bool},
     dedup?: {id, ttl?: dur, extend?, replace?, reschedule?, keepLastIfActive?: bool}, repeatJobKey?: text,
     queue?: prefix:name (addFlow), group?: int (addFlow: a tree of its own)}
A job that is shown, `shown`, is a map (what is unset is absent):
    {id, name, data: json, opts: json, progress: json, delay, priority, timestamp, attemptsStarted, attemptsMade, stalledCounter: int,
     finishedOn?, processedOn?: ms, repeatJobKey?, deduplicationId?, failedReason?: text, deferredFailure?: text, stacktrace?: json,
     returnvalue?: json, parentKey?: key, parent?: {id, queueKey, fpof?, …}, processedBy?: text}
How a worker takes, `taking`: {lock: dur (0: no lock), name?: text, limiter?: [max: int, dur], metrics?: int (points kept)}
What a take answers, `taken`: [shown | null, id | "" , limit's ttl: dur, next due: ms | 0]
Which finished jobs stay, `keep`: [count (-1: all) , age?: dur, limit?: int (too old ones that go at a call, 5,000 at most)]
What a failed run leaves, `fields`: {failedReason?: text, stacktrace?: json}
Types of jobs: waiting, wait, paused, delayed, prioritized, active, completed, failed, waiting-children, repeat.

jobs.py — adding and changing jobs
    addJob [new] -> id [produce]                       addJobs [[new, …]] -> [id, …] [produce]
    addFlow [[new, …]] -> [[0, id] | [code, text], …] [produce]    parents before their children; one entry
    updateData [job, json] [produce|consume]           updateProgress [job, json] [consume]
    addLog [job, text, keep?: int] -> count [consume]  clearLogs [job, keep?: int] [produce|consume]
    changeDelay [job, dur] [produce]                   changePriority [job, int, lifo?] [produce]
    promote [job] [produce]                            remove [job, children: bool] -> 1|0 [produce]
    removeUnprocessedChildren [job] [produce|consume]  removeChildDependency [job, parent's key] -> bool [produce|consume]
    retryFinishedJob [job, "failed"|"completed", lifo?, resetMade?: bool, resetStarted?: bool] [produce]
    removeDeduplicationKey [id, job] -> 1|0 [produce]  deleteDeduplicationKey [id] -> n [produce]
    getDeduplicationJobId [id] -> job | null           getJobData [job] -> shown | null
    getState [job] -> text                             isFinished [job] -> [-1|0|1|2, json | text | null]
    isJobInState [state, job] -> bool                  getJobLogs [job, start, end, asc: bool] -> [[text, …], count]
    getDependencyCounts [job, [type, …]] -> [int, …]   types: processed, unprocessed, ignored, failed
    getDependencies [job, {type: [cursor, count]} | null] -> {type: {key: json|text} | [key, …], …, next: {type: cursor}}
    getProcessedChildrenValues [job] -> {key: json}    getIgnoredChildrenFailures [job] -> {key: text}
    paginate [job, "processed"|"dependencies", start, end, jobs?: bool] -> [total, [[key, json|text|null], …], [shown, …] | null]
workers.py — what workers do; all [consume]
    moveToActive [token, taking] -> taken
    moveToCompleted [job, token, returnvalue: json, keep, fetch: taking | null] -> [finishedOn, taken | null]
    moveToFailed [job, token, reason: text, keep, fetch: taking | null, fields?, attempts?: int] -> [finishedOn, taken | null]
    moveToDelayed [job, token, timestamp: ms, dur, skipAttempt?: bool, fields?, fetch?: taking] -> taken | null
    retryJob [job, token, lifo?: bool, fields?]        moveToWaitingChildren [job, token, child's key?] -> bool
    moveJobFromActiveToWait [job, token] -> limit's ttl: dur
    moveStalledJobsToWait [maxStalledCount, stalledInterval: dur] -> [job, …]
    extendLock [job, token, dur] -> 1|0                extendLocks [[job, …], [token, …], dur] -> [job not extended, …]
waits.py
    wait [dur] -> 0 | null [consume]                   answered when there is something to take, or null after dur
queues.py — the queue as a whole
    pause [bool] [manage:all]                          drain [delayed: bool] [manage:all]
    cleanJobsByState [state, timestamp: ms, limit?] -> [job, …] [manage:all]
    obliterate [force: bool, count: int] -> 0|1 [manage:all]
    retryFinishedJobs [state, count, timestamp: ms] -> 0|1 [manage:all]    promoteJobs [count] -> 0|1 [manage:all]
    getCounts [[type, …], before?: ms] -> [int, …]     getCountsPerPriority [[int, …]] -> [int, …]
    getRanges [[type, …], start, end, asc: bool] -> [[job, …], …]
    isMaxed [] -> bool                                 getRateLimitTtl [max?: int] -> dur
    setRateLimit [dur] [manage:all|consume]            removeRateLimitKey [] -> n [manage:all|consume]
    setQueueMeta [{field: text}] -> n [manage:all; version, opts.maxLenEvents: any]
    removeQueueMetaFields [[field, …]] -> n [manage:all]
    getQueueMeta [] -> {field: text}                   getQueueMetaFields [[field, …]] -> [text | null, …]
    getClientList [] -> [text, …]                      lines of `name=… id=… addr=… age=…` with a newline each, as Redis' CLIENT LIST
    register [id: text, name: text] -> 0               unregister [id: text] -> 0    workers and clients of QueueEvents that are there
events.py — the stream of events
    publishEvent [{field: text}, maxEvents: int] -> id [produce]           trimEvents [n] -> removed [manage:all]
    readEvents [from: id | "$", dur] -> [next, [[id, [field, value, …]], …]] [read]
        what comes after `from`, as soon as there is something, or none after dur; `next` is what to read on from, never `$`
    subscribe [from: id | "$", credit: int] [read]     pushes under code 100: [[id, [field, value, …]], …], until it is cancelled. The
        first push has one entry without fields: where it began, which is never `$`. It tells as many as there is credit for.
    credit [number: int, int] -> bool [read]           a subscription may tell so many more; false where there is none of this number
lifecycle.py — the connection itself; the queue is ""
    ping [] -> 0                                       cancel [number] -> 0: what waits under that number is answered with null
"""

from __future__ import annotations

from itertools import chain

import msgspec

from . import children, events, jobs, lifecycle, lists, logs, metas, presence, queues, waits, workers
from .rows import Row

SUBJECTS: tuple[tuple[Row, ...], ...] = (
    events.ROWS,
    children.ROWS,
    jobs.ROWS,
    lifecycle.ROWS,
    lists.ROWS,
    logs.ROWS,
    metas.ROWS,
    presence.ROWS,
    queues.ROWS,
    waits.ROWS,
    workers.ROWS,
)
ROWS: dict[str, Row] = {row.name: row for row in chain.from_iterable(SUBJECTS)}
DECODERS = {row.name: msgspec.msgpack.Decoder(row.takes, strict=False).decode for row in ROWS.values()}
# What is called with no queue at all.
QUEUELESS = frozenset(row.name for row in lifecycle.ROWS)
