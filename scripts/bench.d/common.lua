-- What the load scripts share: a clock, the moments of the first and last useful reply, and the line with the result.
-- Each script sets `useful(status, body)`: how many jobs a reply stands for.  Use one wrk thread.
local ffi = require("ffi")
ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } quorumq_time;
int clock_gettime(int clock, quorumq_time *time);
]]
local time = ffi.new("quorumq_time")
local function now()
  ffi.C.clock_gettime(1, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

first, last, jobs, errors = 0, 0, 0, 0
wrk.headers["Content-Type"] = "application/json"

function response(status, headers, body)
  if status ~= 200 then errors = errors + 1 return end
  local count = useful(body)
  if count == 0 then return end
  jobs = jobs + count
  last = now()
  if first == 0 then first = last end
end

local threads = {}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency)
  local t = threads[1]
  local refused = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  print(string.format('RESULT {"requests":%d,"jobs":%d,"errors":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f}',
    summary.requests, t:get("jobs"), t:get("errors") + refused, t:get("last") - t:get("first"),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
