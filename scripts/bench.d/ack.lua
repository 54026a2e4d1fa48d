-- Acknowledge batches.  Environment: IDS a file of active jobs' ids, one a line; COUNT ids a request.
-- When the ids run out the requests are empty batches, which count for nothing.
dofile((os.getenv("LUA_DIR") or ".") .. "/common.lua")
local count = tonumber(os.getenv("COUNT"))
local ids, cursor, sent = {}, 0, {}
function init()
  for line in io.lines(os.getenv("IDS")) do ids[#ids + 1] = '"' .. line .. '"' end
end
function request()
  local upto = math.min(cursor + count, #ids)
  local part = table.concat(ids, ",", cursor + 1, upto)
  remaining = cursor < #ids
  cursor = upto
  return wrk.format("POST", "/jobs/ack-batch", nil, '{"ids":[' .. part .. ']}')
end
function useful() return remaining and count or 0 end
