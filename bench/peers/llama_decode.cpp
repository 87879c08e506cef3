// llama_decode MODEL.gguf TOKENS.json CONTEXTS THREADS STEPS: libllama without Node around it. Flash attention, cache in float16,
// one context whose prompt grows from one length to the next. One line of JSON. LLAMA_LIBS is the folder of its libraries.
#include "ggml-backend.h"
#include "llama.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static std::vector<int> integers(std::istream & in) {
  std::vector<int> found;
  for (char c; in.get(c);) {
    if (!isdigit(c)) continue;
    in.unget();
    int value;
    in >> value;
    found.push_back(value);
  }
  return found;
}

static double peak_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return atof(line.c_str() + 6) / 1000;
  return 0;
}

int main(int argc, char ** argv) {
  if (argc != 6 || getenv("LLAMA_LIBS") == nullptr) {
    fprintf(stderr, "llama_decode: needs LLAMA_LIBS and MODEL.gguf TOKENS.json CONTEXTS THREADS STEPS\n");
    return 2;
  }
  std::ifstream file(argv[2]);
  std::istringstream list(argv[3]);
  std::vector<llama_token> tokens = integers(file);
  const std::vector<int> contexts = integers(list);
  const int threads = atoi(argv[4]), steps = atoi(argv[5]), batch = 512;

  llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
  ggml_backend_load_all_from_path(getenv("LLAMA_LIBS"));
  llama_backend_init();
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  llama_model * model = llama_model_load_from_file(argv[1], model_params);
  if (model == nullptr) return 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = contexts.back() + steps + 8;
  params.n_batch = params.n_ubatch = batch;
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  llama_context * context = llama_init_from_model(model, params);
  if (context == nullptr) return 1;
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

  auto decode = [&](llama_token * ids, int count) {
    if (llama_decode(context, llama_batch_get_one(ids, count)) != 0) exit(1);
  };
  auto most_likely = [&]() -> llama_token {
    float * logits = llama_get_logits_ith(context, -1);
    return (llama_token) (std::max_element(logits, logits + vocabulary) - logits);
  };
  decode(tokens.data(), 32);
  llama_memory_clear(llama_get_memory(context), true);

  printf("{\"versions\":{\"llama.cpp\":\"of node-llama-cpp 3.22.1\"},\"rows\":[");
  double prefill = 0;
  int at = 0;
  for (size_t i = 0; i < contexts.size(); i++) {
    double start = seconds();
    for (int count; at < contexts[i]; at += count) {
      count = std::min(batch, contexts[i] - at);
      decode(tokens.data() + at, count);
    }
    llama_token next = most_likely();
    prefill += seconds() - start;
    std::vector<double> times;
    for (int step = 0; step < steps; step++) {
      start = seconds();
      decode(&next, 1);
      next = most_likely();
      times.push_back(seconds() - start);
    }
    std::sort(times.begin(), times.end());
    llama_memory_seq_rm(llama_get_memory(context), 0, contexts[i], -1);
    printf("%s{\"tokens\":%d,\"prefillTokensPerSecond\":%.2f,\"stepMs\":%.4f}", i == 0 ? "" : ",", contexts[i], contexts[i] / prefill, 1000 * times[steps / 2]);
  }
  printf("],\"peakMb\":%.1f}\n", peak_mb());
  return 0;
}
