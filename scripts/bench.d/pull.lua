-- Pull batches.  Environment: QUEUE (filled before), COUNT jobs a request.  A reply that is not empty counts as full.
dofile((os.getenv("LUA_DIR") or ".") .. "/common.lua")
local count = tonumber(os.getenv("COUNT"))
wrk.method = "POST"
wrk.path = "/queues/" .. os.getenv("QUEUE") .. "/jobs/pull-batch"
wrk.body = '{"count":' .. count .. '}'
function useful(body) return #body > 100 and count or 0 end
