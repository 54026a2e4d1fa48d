-- Push jobs.  Environment: QUEUE, BULK jobs a request (0: the single push), DATA the job's data as JSON.
dofile((os.getenv("LUA_DIR") or ".") .. "/common.lua")
local bulk = tonumber(os.getenv("BULK") or "0")
local job = '{"data":' .. os.getenv("DATA") .. '}'
wrk.method = "POST"
wrk.path = "/queues/" .. os.getenv("QUEUE") .. (bulk > 0 and "/jobs/bulk" or "/jobs")
wrk.body = bulk > 0 and '{"jobs":[' .. string.rep(job .. ",", bulk - 1) .. job .. ']}' or job
function useful() return math.max(bulk, 1) end
