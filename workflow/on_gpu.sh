#!/usr/bin/env bash
# Tests, benchmarks and cells of the tables on a machine that has a GPU for some minutes. No network is needed, and
# nothing is installed: `python3` as found, with torch. Everything ends up in one archive, OUT/on_gpu.tar.gz.
#
#   bash workflow/on_gpu.sh                                                 all stages, in 560 seconds
#   OUT=/folder DATA=/data SITE=/site SECONDS_TOTAL=560 bash workflow/on_gpu.sh tests tables
#   RESULTS=/folder/on_gpu/results bash workflow/on_gpu.sh tables           goes on with what an earlier call stored
#   bash workflow/on_gpu.sh --dry-run                                       on the CPU in toy sizes, to try the script
#
# Stages   about    the machine, the versions, the packages
#          tests    tests that need a GPU
#          bench    the most informative benchmarks
#          tf32     the first of them with TF32
#          fused    the first of them with norm, ReLU and pool in one kernel
#          nhwc     the same with TF32 and the channels last in memory
#          hours    GPU-hours of the whole paper
#          tables   the cells in on_gpu.csv, in its order; those whose data are not in DATA are left out
#          failing  tests in which the recording of a step fails, last, since they may leave CUDA in a bad state
#
# OUT            where the archive goes (runs/on_gpu)
# SECONDS_TOTAL  for everything (560). A stage may take its share of what is left; the rest goes to later ones
# DATA           folder of the data sets (GMLIB_DATA, else data)
# RESULTS        results of an earlier call, to go on with (none)
# SITE           folder of further Python packages (none)
# COMMIT         name of the commit, for a copy of the repository without .git
# PART           bytes (15000000): a larger archive is cut into on_gpu.tar.gz.part00, part01, ...: join them with cat
#
# Exit status: 0 every stage that ran ended well; 1 one did not; 2 bad input or a missing package, and nothing ran.
set -u

ALL="about tests bench tf32 fused nhwc hours tables failing"
# Parts of the time, in a fixed relation. A stage gets its share of what is left for itself and those after it.
declare -A SHARE=([about]=3 [tests]=24 [bench]=22 [tf32]=8 [fused]=8 [nhwc]=8 [hours]=20 [tables]=28 [failing]=7)
LEAST=3 # seconds: a stage with less does not begin

refuse() {
    echo "on_gpu: $1" >&2
    exit 2
}

absolute() {
    case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
    esac
}

# ---- what is asked for

SECONDS=0
dry=${DRY:-}
stages=()
for word in "$@"; do
    if [[ $word == --dry-run ]]; then
        dry=1
    elif [[ " $ALL " == *" $word "* ]]; then
        stages+=("$word")
    else
        refuse "there is no stage $word: choose from ${ALL// /, }, or give --dry-run"
    fi
done
if ((${#stages[@]} == 0)); then
    read -ra stages <<<"$ALL"
fi
total=${SECONDS_TOTAL:-560} part=${PART:-15000000}
[[ $total =~ ^[1-9][0-9]*$ ]] || refuse "SECONDS_TOTAL=$total is not a whole number of seconds: give one such as 560"
[[ $part =~ ^[1-9][0-9]*$ ]] || refuse "PART=$part is not a whole number of bytes: give one such as 15000000"
reserve=$((total / 30 + 7)) # for a stage that does not end at its limit, and for the archive
end=$((total - reserve))

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=$(absolute "${DATA:-${GMLIB_DATA:-$root/data}}")
before=${RESULTS:+$(absolute "$RESULTS")} site=${SITE:+$(absolute "$SITE")}
out=$(absolute "${OUT:-$root/runs/on_gpu}")
work=$out/on_gpu archive=$out/on_gpu.tar.gz
[[ -z $before || -d $before ]] || refuse "there is no folder RESULTS=$before: name the results of an earlier call"
[[ -z $site || -d $site ]] || refuse "there is no folder SITE=$site: name one with Python packages"
if [[ -e $work ]] || compgen -G "$archive*" >/dev/null; then
    refuse "OUT=$out holds what an earlier call made: name another folder, or move that away"
fi

export PYTHONPATH=$root:$root/book${site:+:$site}${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python3 "$root/workflow/on_gpu.py" missing "${stages[@]}" || exit 2
device=cuda
if [[ $dry ]]; then
    device=cpu
    export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1
elif ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    refuse "torch finds no GPU here: give --dry-run to try the script on the CPU"
fi

mkdir -p "$work/results" || refuse "the folder OUT=$out cannot be made: name another"
if [[ $before ]]; then
    cp -R "$before/." "$work/results" || refuse "RESULTS=$before cannot be copied to $work"
fi
cd "$root" || exit 2
commit=${COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null)}
commit=${commit//[^[:alnum:]._+-]/}
export GMLIB_COMMIT=$commit # stored with every result, in a copy without .git

# ---- the stages

# command_of STAGE LIMIT: sets `command`. Those that can stop by themselves do so somewhat before the limit.
command_of() {
    local soon=$(($2 * 6 / 10)) last=$(($2 > 60 ? $2 - 20 : $2 * 2 / 3))
    local pytest=(python3 -m pytest -W default -p no:benchmark -p no:xdist -p no:cacheprovider -vv --durations=5)
    local bench=(python3 benchmarks/bench.py --device "$device" --seconds-total "$soon" --seconds "$((soon / 4 + 1))")
    local grey=1x28x28/C10 colour=3x32x32/C10
    case $1 in
    about)
        command=(python3 workflow/on_gpu.py about "$commit")
        ;;
    tests)
        command=("${pytest[@]}" tests/test_{cuda,kernels,evaluate,data,coreset,growth}.py
            -k '(test_cuda or test_kernels or gpu) and not reads_a_value and not control_flow and not branching')
        # Without a GPU they take the interpreter of Triton, and most of the time of a dry run.
        [[ ! $dry ]] || command+=(--deselect tests/test_kernels.py::test_every_pass_of_a_network_agrees_with_its_layers
            --deselect tests/test_kernels.py::test_values_and_gradients_are_those_of_float64)
        ;;
    failing)
        command=("${pytest[@]}" tests/test_{cuda,evaluate}.py
            -k 'reads_a_value or control_flow or (gpu and branching)')
        ;;
    bench | tf32 | fused | nhwc)
        command=("${bench[@]}" --out "$work/$1.json")
        if [[ $dry ]]; then
            command+=(--quick --repeats 1 --cases pass/1x8x8/C3)
        elif [[ $1 != bench ]]; then
            case $1 in
            tf32) command+=(--tf32) ;;
            fused) command+=(--fused nchw) ;;
            nhwc) command+=(--fused nhwc --tf32) ;;
            esac
            command+=(--cases "pass/$grey" "step/DC/$grey/ipc1" "step/DC/$grey/ipc10")
        else
            command+=(--cases "pass/$grey" "step/*/$grey/ipc1" "step/*/$grey/ipc10" "outer/*/$grey/ipc1"
                "outer/MDA-vs-DC/$grey/ipc10" "evaluate/$grey/ipc1/as-is" "evaluate/$grey/ipc10/as-is"
                "pass/$colour" "set/MDA/$colour/ipc1" "set/MDA/$colour/ipc10")
        fi
        ;;
    hours)
        command=(python3 benchmarks/workflow.py --only paper --device "$device" --out "$work/hours.json")
        [[ ! $dry ]] || command+=(--quick)
        ;;
    tables)
        command=(python3 workflow/on_gpu.py tables)
        if [[ $dry ]]; then
            command+=(workflow/smoke.csv "$data" --budget smoke --methods DC --ipc 1 --seeds 0 --networks 1)
        else
            command+=(workflow/on_gpu.csv "$data" --budget paper --networks 10)
        fi
        command+=(--results-dir "$work/results" --device "$device" --time-budget "$last" --quiet)
        ;;
    esac
}

# status_of STAGE EXIT_STATUS: prints how a stage ended.
status_of() {
    case $1/$2 in
    */124 | */137) echo "timed out" ;;
    tables/75) echo "skipped" ;;
    tables/3) echo "ok, not all done" ;;
    bench/0 | tf32/0 | fused/0 | nhwc/0) if grep -q ' failed: ' "$work/$1.log"; then echo "failed"; else echo "ok"; fi ;;
    */0) echo "ok" ;;
    *) echo "failed" ;;
    esac
}

names=() statuses=() seconds=() good=1

# note STAGE STATUS SECONDS: keeps a line for the summary, and writes summary.json.
note() {
    names+=("$1") statuses+=("$2") seconds+=("$3")
    case $2 in
    ok* | skipped | "no time left") ;;
    *) good=0 ;;
    esac
    local i
    {
        printf '{\n "commit": "%s",\n "device": "%s",\n "seconds_total": %d,\n "stages": [' "$commit" "$device" "$total"
        for i in "${!names[@]}"; do
            ((i == 0)) || printf ','
            printf '\n  {"stage": "%s", "status": "%s", "seconds": %d}' \
                "${names[i]}" "${statuses[i]}" "${seconds[i]}"
        done
        printf '\n ]\n}\n'
    } >"$work/summary.json.tmp" && mv "$work/summary.json.tmp" "$work/summary.json"
}

# pack: everything goes into the archive, and what is packed is removed. Nothing is removed if that fails.
pack() {
    tar -C "$out" -cf - on_gpu | gzip -1 >"$archive.tmp"
    if [[ ${PIPESTATUS[*]} != "0 0" ]]; then
        rm -f "$archive.tmp"
        echo "on_gpu: the archive could not be written, so the files are in $work" >&2
        return 1
    fi
    if (($(wc -c <"$archive.tmp") > part)); then
        split -b "$part" -d -a 2 "$archive.tmp" "$archive.part" || return 1
        rm -f "$archive.tmp"
    else
        mv "$archive.tmp" "$archive" || return 1
    fi
    rm -rf "$work"
}

finish() {
    trap '' TERM INT HUP
    local i
    printf '\n%-8s  %-16s %7s\n' stage status seconds
    for i in "${!names[@]}"; do
        printf '%-8s  %-16s %7d\n' "${names[i]}" "${statuses[i]}" "${seconds[i]}"
    done
    pack || good=0
    echo "on_gpu: $(cd "$out" && echo on_gpu*) in $out, after $SECONDS s"
    exit $((1 - good))
}

job='' running=''

# end_of_job: waits for the stage that runs, and leaves none of its processes behind. They are in timeout's group.
end_of_job() {
    local ended
    wait "$job" 2>/dev/null
    ended=$?
    kill -KILL -- "-$job" 2>/dev/null
    job=''
    return "$ended"
}

# stop: at a signal, end the stage that runs.
# shellcheck disable=SC2329 # trap calls it
stop() {
    trap '' TERM INT HUP
    if [[ $job ]]; then
        kill -TERM "$job" 2>/dev/null # timeout passes it on, and kills what is there 5 seconds later
        end_of_job
        note "$running" terminated $((SECONDS - started))
    fi
    good=0
    finish
}
trap stop TERM INT HUP

for n in "${!stages[@]}"; do
    running=${stages[n]} started=$SECONDS shares=0
    for later in "${stages[@]:n}"; do
        ((shares += SHARE[$later]))
    done
    limit=$(((end - started) * SHARE[$running] / shares))
    if ((limit < LEAST)); then
        note "$running" "no time left" 0
        continue
    fi
    echo "on_gpu: $running, at most $limit s"
    command_of "$running" "$limit"
    # INT, as by Ctrl-C: pytest then shows what failed so far. Bash makes background commands ignore it, hence env.
    env --default-signal=INT timeout -s INT -k 5 "$limit" "${command[@]}" >"$work/$running.log" 2>&1 </dev/null &
    job=$!
    end_of_job
    status=$(status_of "$running" $?)
    note "$running" "$status" $((SECONDS - started))
    case $status in
    ok*) tail -n 3 "$work/$running.log" ;;
    *) tail -n 25 "$work/$running.log" ;;
    esac
    echo "on_gpu: $running, $status"
done
finish
